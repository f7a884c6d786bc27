"""Parts of a report: a summary of the scores, chosen examples, figures and one page."""
