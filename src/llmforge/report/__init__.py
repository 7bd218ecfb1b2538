"""Tables for reports and model cards."""
