"""Learned access: which of a workflow's blocks its coming steps will use, and when."""
