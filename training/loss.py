"""The loss of all our networks.

StyleGAN2's: non-saturating logistic loss (Goodfellow et al. 2014), R1 (Mescheder et al. 2018), path length
regularisation (Karras et al. 2020b, section 3.2) and style mixing (Karras et al. 2019, section 3.1). Ours: the camera
loss, which is the distance between the camera asked for and the one that D's CameraPredictor sees in the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from torch_utils import misc, training_stats
from torch_utils.distributed import mean_over_ranks
from torch_utils.ops import upfirdn2d
from training.augment.transforms import DrawSource


@dataclass
class Draws:
    """Makes the random numbers of one accumulation round, except the inputs. The default is `GLOBAL_DRAWS`."""

    mix_z: Callable[[Tensor], Tensor]                   # z [N, z_dim] -> latents to mix in, of the same shape
    mix_cutoff: Callable[[int, int, float], Tensor]     # N, num_ws, probability -> first mixed layer [N]; num_ws: none
    image_noise: Callable[[Tensor], Tensor]             # images -> normal noise of their shape
    augment: Callable[[str], DrawSource | None]         # 'fake' or 'real' -> augmentation; None: global generators


def _global_mix_cutoff(batch: int, num_ws: int, probability: float) -> Tensor:
    cutoff = torch.randint(1, num_ws, [batch])
    return torch.where(torch.rand([batch], dtype=torch.float32) < probability, cutoff, num_ws)


GLOBAL_DRAWS = Draws(mix_z=torch.randn_like, mix_cutoff=_global_mix_cutoff, image_noise=torch.randn_like,
                     augment=lambda kind: None)


class Loss:
    """What the training loop calls. Users' losses derive from it, as in StyleGAN3."""

    def accumulate_gradients(self, phase: str, real_img: Tensor, real_c: Tensor, gen_z: Tensor,
                             gen_c: Tensor, gain: float, cur_nimg: int) -> None:
        raise NotImplementedError


class StyleGAN2Loss(Loss):
    """Accumulates the gradients of a phase: 'Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg' or 'Dboth'."""

    def __init__(self,
        device:             Any,
        G:                  torch.nn.Module,
        D:                  torch.nn.Module,
        augment_pipe:       Callable | None = None,     # Applied to all images that D sees; None: no augmentation.
        r1_gamma:           float           = 10,       # Weight of R1; 0: off.
        style_mixing_prob:  float           = 0,        # 0: off.
        pl_weight:          float           = 0,        # Weight of path length regularisation; 0: off.
        pl_batch_shrink:    int             = 2,        # It sees 1/pl_batch_shrink of the batch.
        pl_decay:           float           = 0.01,     # Of the running mean of path lengths.
        pl_no_weight_grad:  bool            = False,    # No effect: autograd computes no weight gradients unasked.
        blur_init_sigma:    float           = 0,        # D first sees images blurred by this sigma [pixels] ...
        blur_fade_kimg:     float           = 0,        # ... which falls to 0 over this many thousand images.
        camera_weight:      float           = 0,        # Weight of the camera loss in G's loss; 0: off.
        camera_start_kimg:  float           = 0,        # G's loss has it after this many thousand images.
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

    def run_G(self, z: Tensor, c: Tensor, update_emas: bool = False,
              draws: Draws = GLOBAL_DRAWS) -> tuple[Tensor, Tensor]:
        """z: [N, z_dim], c: [N, c_dim]. Returns images and their ws, with style mixing from each sample's cutoff on."""
        ws = self.G.mapping(z, c, update_emas=update_emas)
        if self.style_mixing_prob > 0:
            cutoff = draws.mix_cutoff(ws.shape[0], ws.shape[1], self.style_mixing_prob).to(ws.device)
            other = self.G.mapping(draws.mix_z(z), c, update_emas=False)
            mixed = torch.arange(ws.shape[1], dtype=torch.int64, device=ws.device) >= cutoff[:, None]
            ws = torch.where(mixed[:, :, None], other, ws)                  # mixed: [N, num_ws]
        return self.G.synthesis(ws, c, update_emas=update_emas), ws

    def run_D(self, img: Tensor, c: Tensor, blur_sigma: float = 0, update_emas: bool = False,
              augment_draws: DrawSource | None = None) -> Tensor:
        """Logits [N, 1] of the images, after blur and augmentation."""
        reach = math.floor(blur_sigma * 3)
        if reach > 0:
            position = torch.arange(-reach, reach + 1, dtype=torch.float32, device=img.device)
            taps = position.div(blur_sigma).square().neg().exp2()
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
    def accumulate_gradients(self, phase: str, real_img: Tensor, real_c: Tensor, gen_z: Tensor, gen_c: Tensor,
                             gain: float, cur_nimg: int, draws: Draws = GLOBAL_DRAWS) -> None:
        """Adds the phase's gradients, times `gain`, to the parameters' .grad.

        real_img: [N, C, H, W] in -1 .. 1; real_c, gen_c: [N, c_dim]; gen_z: [N, z_dim]. cur_nimg: images seen so far.
        """
        assert phase in ("Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth"), phase
        main, reg = phase[1:] in ("main", "both"), phase[1:] in ("reg", "both")
        sigma = self.blur_sigma(cur_nimg)
        if phase[0] == "G":
            if main:
                shows_camera = cur_nimg >= self.camera_start_kimg * 1e3
                self._generator_main(gen_z, gen_c, gain, sigma, draws, shows_camera)
            if reg and self.pl_weight != 0:
                self._path_length(gen_z, gen_c, gain, draws)
        else:
            reg = reg and self.r1_gamma != 0
            fake_loss = self._discriminator_fake(gen_z, gen_c, gain, sigma, draws) if main else None
            if main or reg:
                self._discriminator_real(real_img, real_c, gain, sigma, draws, fake_loss, reg)

    def _generator_main(self, gen_z: Tensor, gen_c: Tensor, gain: float, sigma: float, draws: Draws,
                        shows_camera: bool) -> None:
        """G learns to make images that D takes for real and, if `shows_camera`, that show the cameras asked for."""
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

    def _path_length(self, gen_z: Tensor, gen_c: Tensor, gain: float, draws: Draws) -> None:
        """G learns to change the image by the same amount for any step in w (equation 4)."""
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
        # The published gradient also runs through the target, of which this batch's mean over all ranks is the share
        # `pl_decay`: d target = pl_decay mean(d length). The next term has this derivative and the value 0.
        through_target = (lengths.detach() - lengths) * (2 * self.pl_decay * (mean_length - target))
        ((penalty + through_target) * self.pl_weight).mean().mul(gain).backward()

    def _discriminator_fake(self, gen_z: Tensor, gen_c: Tensor, gain: float, sigma: float, draws: Draws) -> Tensor:
        """D learns to take generated images for generated. Returns this part of its loss, for the statistics."""
        with torch.no_grad():
            img, _ = self.run_G(gen_z, gen_c, update_emas=True, draws=draws)
        logits = self.run_D(img, gen_c, sigma, update_emas=True, augment_draws=draws.augment("fake"))
        _report_logits("fake", logits)
        loss = softplus(logits)
        loss.mean().mul(gain).backward()
        return loss.detach()

    def _discriminator_real(self, real_img: Tensor, real_c: Tensor, gain: float, sigma: float, draws: Draws,
                            fake_loss: Tensor | None, reg: bool) -> None:
        """D learns to take real images for real and to tell their cameras (unless `fake_loss` is None). With `reg`, R1
        flattens D around them.
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
                total = total + error[:, None]                              # no factor: its weights have no other loss
        if reg:
            slope, = torch.autograd.grad(logits.sum(), img, create_graph=True)
            penalty = slope.square().sum([1, 2, 3])                         # [N]
            training_stats.report("Loss/r1_penalty", penalty)
            training_stats.report("Loss/D/reg", penalty * (self.r1_gamma / 2))
            total = total + penalty[:, None] * (self.r1_gamma / 2)
        total.mean().mul(gain).backward()


def _report_logits(kind: str, logits: Tensor) -> None:
    training_stats.report(f"Loss/scores/{kind}", logits)
    training_stats.report(f"Loss/signs/{kind}", logits.sign())
