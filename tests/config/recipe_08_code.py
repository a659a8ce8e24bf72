"""What a recipe's ``code`` names."""
