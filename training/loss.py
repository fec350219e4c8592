"""The StyleGAN2 loss for all our networks: non-saturating logistic loss (Goodfellow et al. 2014), R1 (Mescheder et al. 2018),
path length regularisation (Karras et al. 2020b, section 3.2), style mixing (Karras et al. 2019, section 3.1); and ours: the
camera loss, how far the camera that an image shows is from the one asked for, as D's CameraPredictor sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import softplus

from torch_utils import misc, training_stats
from torch_utils.distributed import mean_over_ranks
from torch_utils.ops import upfirdn2d
from training.augment.draws import DrawSource


@dataclass
class Draws:
    """The random numbers of one accumulation round that are no inputs. `GLOBAL_DRAWS` makes them where nobody else does."""

    mix_z: Callable[[torch.Tensor], torch.Tensor]                   # z [N, z_dim] -> the latents to mix in, same shape
    mix_cutoff: Callable[[int, int, float], torch.Tensor]           # N, num_ws, probability -> first mixed layer [N]; num_ws: none
    image_noise: Callable[[torch.Tensor], torch.Tensor]             # images -> normal noise of their shape
    augment: Callable[[str], DrawSource | None]                     # 'fake' or 'real' -> what augments these images; None: global generators


def _global_mix_cutoff(batch: int, num_ws: int, probability: float) -> torch.Tensor:
    cutoff = torch.randint(1, num_ws, [batch])
    return torch.where(torch.rand([batch], dtype=torch.float32) < probability, cutoff, num_ws)


GLOBAL_DRAWS = Draws(mix_z=torch.randn_like, mix_cutoff=_global_mix_cutoff, image_noise=torch.randn_like, augment=lambda kind: None)


class Loss:
    """What the training loop calls. Losses of users derive from it, as in StyleGAN3."""

    def accumulate_gradients(self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, gen_z: torch.Tensor,
                             gen_c: torch.Tensor, gain: float, cur_nimg: int) -> None:
        raise NotImplementedError


class StyleGAN2Loss(Loss):
    """Accumulates the gradients of a phase: 'Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg' or 'Dboth'."""

    def __init__(self,
        device:             Any,
        G:                  torch.nn.Module,
        D:                  torch.nn.Module,
        augment_pipe:       Callable | None = None,     # Applied to all that D sees; None: nothing.
        r1_gamma:           float           = 10,       # Weight of R1; 0: off.
        style_mixing_prob:  float           = 0,        # 0: off.
        pl_weight:          float           = 0,        # Weight of path length regularisation; 0: off.
        pl_batch_shrink:    int             = 2,        # It sees 1/pl_batch_shrink of the batch.
        pl_decay:           float           = 0.01,     # Of the running mean of path lengths.
        pl_no_weight_grad:  bool            = False,    # Accepted; autograd never computes weight gradients that nobody asks for.
        blur_init_sigma:    float           = 0,        # D first sees images blurred by this sigma [pixels] ...
        blur_fade_kimg:     float           = 0,        # ... which falls to 0 over so many thousand images.
        camera_weight:      float           = 0,        # Weight of the camera loss in G's, for a D that predicts cameras; 0: off.
        camera_start_kimg:  float           = 0,        # It counts for G after so many thousand images: first heads, then turns.
    ):
        self.device = device
        self.G, self.D = G, D
        self.augment_pipe = augment_pipe
        self.r1_gamma = r1_gamma
        self.style_mixing_prob = style_mixing_prob
        self.pl_weight = pl_weight
        self.pl_batch_shrink = pl_batch_shrink
        self.pl_decay = pl_decay
        self.pl_mean = torch.zeros([], dtype=torch.float32, device=device)
        self.blur_init_sigma = blur_init_sigma
        self.blur_fade_kimg = blur_fade_kimg
        self.camera_weight = camera_weight
        self.camera_start_kimg = camera_start_kimg

    # -- Networks as the loss sees them -----------------------------------------------------------------------------

    def run_G(self, z: torch.Tensor, c: torch.Tensor, update_emas: bool = False, draws: Draws = GLOBAL_DRAWS) -> tuple[torch.Tensor, torch.Tensor]:
        """z: [N, z_dim], c: [N, c_dim]. Returns images and ws, in which style mixing replaced all from each sample's cutoff on."""
        ws = self.G.mapping(z, c, update_emas=update_emas)
        if self.style_mixing_prob > 0:
            cutoff = draws.mix_cutoff(ws.shape[0], ws.shape[1], self.style_mixing_prob).to(ws.device)
            other = self.G.mapping(draws.mix_z(z), c, update_emas=False)
            mixed = torch.arange(ws.shape[1], dtype=torch.int64, device=ws.device) >= cutoff[:, None]      # [N, num_ws]
            ws = torch.where(mixed[:, :, None], other, ws)
        return self.G.synthesis(ws, c, update_emas=update_emas), ws

    def run_D(self, img: torch.Tensor, c: torch.Tensor, blur_sigma: float = 0, update_emas: bool = False,
              augment_draws: DrawSource | None = None) -> torch.Tensor:
        """Logits [N, 1] of images after blur and augmentation."""
        reach = math.floor(blur_sigma * 3)
        if reach > 0:
            taps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=img.device).div(blur_sigma).square().neg().exp2()
            img = upfirdn2d.filter2d(img, taps / taps.sum())
        if self.augment_pipe is not None:
            img = self.augment_pipe(img) if augment_draws is None else self.augment_pipe(img, draws=augment_draws)
        return self.D(img, c, update_emas=update_emas)

    def blur_sigma(self, cur_nimg: int) -> float:
        """Sigma [pixels] of the blur after `cur_nimg` images."""
        if self.blur_fade_kimg <= 0:
            return 0.0
        return max(1 - cur_nimg / (self.blur_fade_kimg * 1e3), 0) * self.blur_init_sigma

    # -- Phases -----------------------------------------------------------------------------------------------------

    @misc.own_precision
    def accumulate_gradients(self, phase: str, real_img: torch.Tensor, real_c: torch.Tensor, gen_z: torch.Tensor, gen_c: torch.Tensor, gain: float,
                             cur_nimg: int, draws: Draws = GLOBAL_DRAWS) -> None:
        """Adds the phase's gradients, times `gain`, to the parameters' .grad. Images: [N, C, H, W] in -1 .. 1."""
        assert phase in ("Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth"), phase
        main, reg = phase[1:] in ("main", "both"), phase[1:] in ("reg", "both")
        sigma = self.blur_sigma(cur_nimg)
        if phase[0] == "G":
            if main:
                self._generator_main(gen_z, gen_c, gain, sigma, draws, shows_camera=cur_nimg >= self.camera_start_kimg * 1e3)
            if reg and self.pl_weight != 0:
                self._path_length(gen_z, gen_c, gain, draws)
        else:
            reg = reg and self.r1_gamma != 0
            fake_loss = self._discriminator_fake(gen_z, gen_c, gain, sigma, draws) if main else None
            if main or reg:
                self._discriminator_real(real_img, real_c, gain, sigma, draws, fake_loss, reg)

    def _generator_main(self, gen_z: torch.Tensor, gen_c: torch.Tensor, gain: float, sigma: float, draws: Draws, shows_camera: bool) -> None:
        """G wants its images taken for real and, from `camera_start_kimg` on, to show the cameras asked for."""
        img, _ = self.run_G(gen_z, gen_c, draws=draws)
        logits = self.run_D(img, gen_c, sigma, augment_draws=draws.augment("fake"))
        loss = softplus(-logits)
        _report_logits("fake", logits)
        training_stats.report("Loss/G/loss", loss)
        if self.camera_weight != 0:
            error = self.D.camera_predictor.error(img if shows_camera else img.detach(), gen_c)
            training_stats.report("Loss/G/camera", error)
            loss = loss + self.camera_weight * error[:, None] if shows_camera else loss
        loss.mean().mul(gain).backward()

    def _path_length(self, gen_z: torch.Tensor, gen_c: torch.Tensor, gain: float, draws: Draws) -> None:
        """A step in w should change the image by the same amount everywhere (equation 4)."""
        count = max(gen_z.shape[0] // self.pl_batch_shrink, 1)
        img, ws = self.run_G(gen_z[:count], gen_c[:count], draws=draws)
        noise = draws.image_noise(img) / math.sqrt(img.shape[2] * img.shape[3])
        jacobian, = torch.autograd.grad((img * noise).sum(), ws, create_graph=True)         # J^T y, [N, num_ws, w_dim]
        lengths = jacobian.square().sum(2).mean(1).sqrt()
        mean_length = mean_over_ranks(lengths.detach().mean())
        target = self.pl_mean.lerp(mean_length, self.pl_decay)
        self.pl_mean.copy_(target)
        penalty = (lengths - target).square()                               # [count]
        training_stats.report("Loss/pl_penalty", penalty)
        training_stats.report("Loss/G/reg", penalty * self.pl_weight)
        # The target holds `pl_decay` of this batch's mean, over all ranks, and the published gradient runs through it:
        # d target = pl_decay mean(d length). The term has this derivative and the value 0.
        through_target = (lengths.detach() - lengths) * (2 * self.pl_decay * (mean_length - target))
        ((penalty + through_target) * self.pl_weight).mean().mul(gain).backward()

    def _discriminator_fake(self, gen_z: torch.Tensor, gen_c: torch.Tensor, gain: float, sigma: float, draws: Draws) -> torch.Tensor:
        """D wants generated images taken for generated. Returns this part of its loss, for the statistics."""
        with torch.no_grad():
            img, _ = self.run_G(gen_z, gen_c, update_emas=True, draws=draws)
        logits = self.run_D(img, gen_c, sigma, update_emas=True, augment_draws=draws.augment("fake"))
        _report_logits("fake", logits)
        loss = softplus(logits)
        loss.mean().mul(gain).backward()
        return loss.detach()

    def _discriminator_real(self, real_img: torch.Tensor, real_c: torch.Tensor, gain: float, sigma: float, draws: Draws,
                            fake_loss: torch.Tensor | None, reg: bool) -> None:
        """D wants real images taken for real (where there is a `fake_loss` to go with it), and learns to tell their
        cameras; R1 flattens D around them.
        """
        img = real_img.detach().requires_grad_(reg)
        logits = self.run_D(img, real_c, sigma, augment_draws=draws.augment("real"))
        _report_logits("real", logits)
        total = torch.zeros_like(logits)
        if fake_loss is not None:
            loss = softplus(-logits)
            training_stats.report("Loss/D/loss", fake_loss + loss.detach())
            total = total + loss
            if self.camera_weight != 0:
                error = self.D.camera_predictor.error(real_img, real_c)
                training_stats.report("Loss/D/camera", error)
                total = total + error[:, None]                              # its weights are its own: no factor needed
        if reg:
            slope, = torch.autograd.grad(logits.sum(), img, create_graph=True)
            penalty = slope.square().sum([1, 2, 3])                         # [N]
            training_stats.report("Loss/r1_penalty", penalty)
            training_stats.report("Loss/D/reg", penalty * (self.r1_gamma / 2))
            total = total + penalty[:, None] * (self.r1_gamma / 2)
        total.mean().mul(gain).backward()


def _report_logits(kind: str, logits: torch.Tensor) -> None:
    training_stats.report(f"Loss/scores/{kind}", logits)
    training_stats.report(f"Loss/signs/{kind}", logits.sign())
