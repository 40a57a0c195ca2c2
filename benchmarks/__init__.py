"""The benchmark harness: what is measured, how, and the page that shows it. Run it with ``make bench``."""
