"""Preparing a pull request for upstream: a branch, evidence and a checklist. A named person writes and submits it."""
