"""What a model's work is judged by: figures out of plain numbers, with numpy alone."""
