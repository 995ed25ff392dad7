"""What an evaluation shows: tables, plots, the page, the model card."""
