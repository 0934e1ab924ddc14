"""What failures mean, who caused them, and who hangs: judged from plain values, without Ray and DeepSpeed."""
