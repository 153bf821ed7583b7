"""Moving stacks to another upstream commit: every patch in one run, conflicts resolved once, nothing half done."""
