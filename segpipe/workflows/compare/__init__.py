"""`segpipe compare`: several models on the same cases."""
