"""The access models of a predictor: begun with a prior (`prior`), learnt from access logs (`learner`), with a version for each
of their parts (`versions`)."""
