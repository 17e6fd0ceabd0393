"""What DATA.ROOT can name: folders, lists, CIFAR-10, tar shards; decoding."""
