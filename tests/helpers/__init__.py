"""What tests of several files share: small plans, models, recipes, fixtures."""
