"""What several test files share. No test is here."""
