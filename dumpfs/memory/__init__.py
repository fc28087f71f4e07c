"""Physical memory under a hole policy, the page cache, and virtual address spaces."""
