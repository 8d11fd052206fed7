"""From an export into a running engine: loaded, asked, acknowledged or taken back, and written down."""
