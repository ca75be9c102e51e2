"""`segpipe distill`: teachers and students."""
