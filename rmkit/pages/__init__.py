"""Pages about runs: what is read of a run folder, charts, and the HTML that shows them."""
