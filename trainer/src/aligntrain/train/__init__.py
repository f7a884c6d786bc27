"""One phase of training; `python -m aligntrain.train RUN` starts one process of it."""
