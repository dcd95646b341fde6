"""What a comparison looks like: page, charts, pictures of masks, Markdown, JUnit XML."""
