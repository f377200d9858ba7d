"""`ilgnet finetune`: from labelled images to a net of one's own, by steps that the other commands do."""
