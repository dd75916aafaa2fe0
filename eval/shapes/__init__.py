"""The world of the shapes samples: its judge, its real pictures, the demo."""
