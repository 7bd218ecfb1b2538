"""Reports and model cards: blocks of text, tables and charts, as HTML pages or as Markdown."""
