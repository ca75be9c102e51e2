"""Studies of a cross-validation: all is chosen on a study's own cases, and only then are its test cases looked at."""
