"""The access model of a predictor: learnt from access logs (`learner`), with a version for each of its parts (`versions`)."""
