"""A variant as a Hugging Face folder, which other engines load: `pipeline ship GRAPH --to hf FOLDER`."""
