"""What changed between two revisions of a stack, patch by patch."""
