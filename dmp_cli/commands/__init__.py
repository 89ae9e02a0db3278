"""One file per verb: options -> plan and jobs -> results. The only place that prints."""
