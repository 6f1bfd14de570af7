"""Models: where their files come from, how the embedded ones are built, how their quality is measured."""
