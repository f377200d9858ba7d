"""The study: ILGNet, its ablations and releases, AVA, partitions, test protocols, verdicts and reports."""
