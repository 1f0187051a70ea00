"""The shapes that a row of preference data can have, a file for each family; rmkit.data.forms lists them all."""
