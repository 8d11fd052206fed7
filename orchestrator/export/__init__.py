"""From a finished run to files that serving engines load, each with a certificate that says what they hold and what was lost."""
