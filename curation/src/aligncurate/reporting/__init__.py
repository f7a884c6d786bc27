"""What a report is made of: a summary of the scores, chosen examples, figures and one page."""
