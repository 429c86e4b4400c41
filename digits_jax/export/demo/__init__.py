"""A page to draw on, read by an exported run in the browser alone: `page/`, and what fills it."""
