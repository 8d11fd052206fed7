"""The console: pages made by the server, for people. ``static/htmx.min.js`` is htmx 2.0.11 (0BSD, see ``htmx.LICENSE``); there is no build step."""
