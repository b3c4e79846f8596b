"""A GPU worker: engine, scheduler, device. It runs without Ray and Redis installed."""
