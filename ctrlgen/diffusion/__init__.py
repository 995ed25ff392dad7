"""What x_t is: noise schedules, the forward and reverse process, the denoiser, samplers."""
