"""Models held against each other on the same cases: what they cost, what they score, and whether the difference is more than chance."""
