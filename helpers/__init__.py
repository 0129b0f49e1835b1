"""What the recipes' notebooks share: dull, hard or dangerous things, one room for each."""
