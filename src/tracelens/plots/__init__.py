"""Pictures of a trace: what they show (`charts`), as a figure (`figure`), as a page (`page`)."""
