"""The demo's parts: real MNIST images, and torchvision beside a CPU-only torch."""
