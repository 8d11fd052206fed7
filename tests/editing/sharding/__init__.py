"""Parts of linear layers."""
