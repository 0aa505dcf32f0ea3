"""What becomes of a command job: its attempts, and what can end each."""

from __future__ import annotations

import shutil
import time

from tests.azure.execution import Attempt, start
from tests.azure.jobs import Job, Jobs, seconds
from tests.azure.mounts import DataError

_TICK = 0.02


def run_command(jobs: Jobs, job: Job) -> None:
    """From NotStarted to its end."""
    limit = (job.properties.get("limits") or {}).get("timeout")
    deadline = time.monotonic() + seconds(limit) if limit else None
    try:
        while not job.ended and _attempt(jobs, job, deadline):
            pass
    except DataError as error:
        jobs.failed(job, error.code, str(error))
    except Exception as error:  # the job must end, and the test must see why
        jobs.failed(job, "ServiceError", f"the control plane itself failed: {error!r}")
        # One that was forgotten may have lost its storage account as well.
        if not job.forgotten:
            raise
    finally:
        if job.forgotten:
            shutil.rmtree(job.folder, ignore_errors=True)


def _attempt(jobs: Jobs, job: Job, deadline: float | None) -> bool:
    """One start of the command; whether there is another."""
    machine, faults = jobs.machine, jobs.faults
    jobs.moved(job, "Queued")
    if job.cancelled.wait(machine.queue_seconds):
        jobs.moved(job, "Canceled")
        return False
    if faults.take("quota_at_allocation"):
        jobs.failed(job, "AmlComputeQuotaExceeded", "The cluster could not allocate nodes: the vCPU quota is used up.")
        return False
    jobs.moved(job, "Preparing")
    image = jobs.image_of(job)
    if image in faults.bad_images:
        jobs.failed(job, "ImagePullFailure", f"Failed to pull the image {image}: manifest unknown or access denied.")
        return False
    job.attempts += 1
    attempt = start(jobs.order(job), jobs.mounts, machine.image, job.folder / str(job.attempts))
    job.logs = attempt.logs
    jobs.moved(job, "Running")
    try:
        return _watch(jobs, job, attempt, deadline)
    finally:
        attempt.kill()


def _watch(jobs: Jobs, job: Job, attempt: Attempt, deadline: float | None) -> bool:
    """Until the attempt has ended; whether there is another."""
    machine, faults = jobs.machine, jobs.faults
    started = time.monotonic()
    while True:
        code = attempt.poll()
        if code is not None:
            # One process that failed ends the others.
            attempt.kill()
            attempt.store_outputs()
            _ended(jobs, job, code)
            return False
        attempt.keep_outputs()
        if job.forgotten:
            return False
        if job.name in faults.vanished:
            jobs.forget(job)
            return False
        if job.cancelled.is_set():
            attempt.terminate(machine.grace_seconds)
            attempt.store_outputs()
            jobs.moved(job, "Canceled")
            return False
        if deadline is not None and time.monotonic() >= deadline:
            attempt.terminate(machine.grace_seconds)
            attempt.store_outputs()
            jobs.failed(
                job, "JobExceededTimeLimit", "The job was cancelled because it ran longer than its limit allows."
            )
            return False
        if faults.take_node(job.name):
            attempt.kill()
            attempt.store_outputs()
            jobs.failed(job, "NodeLost", "The node that ran the job became unusable: its agent does not answer.")
            return False
        if preemption := faults.take_preemption(job.name, time.monotonic() - started):
            if preemption.warned:
                attempt.terminate(machine.grace_seconds)
            attempt.kill()
            attempt.store_outputs()
            if preemption.last:
                jobs.failed(job, "NodePreempted", "The low-priority node that ran the job was preempted too often.")
            return not preemption.last
        time.sleep(_TICK)


def _ended(jobs: Jobs, job: Job, code: int) -> None:
    job.exit_code = code
    if code == 0:
        jobs.moved(job, "Finalizing")
        jobs.moved(job, "Completed")
        return
    tail = b"".join(path.read_bytes()[-500:] for path in job.logs.values()).decode(errors="replace")
    jobs.failed(
        job,
        "UserError",
        f"Execution failed. User process '/bin/bash' exited with status code {code}. Please check log file "
        f"'{next(iter(job.logs))}' for error details. Error: {tail}",
    )
