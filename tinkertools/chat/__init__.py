"""What a training example is: from raw rows to batches of datums. Nothing here touches an engine or a run."""
