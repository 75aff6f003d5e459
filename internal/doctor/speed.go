package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"kuorum/internal/advise"
	"kuorum/internal/host"
)

// How the disk is measured: as many writes as make a p99, or as many as there
// are in a time that a person waits.
const (
	fsyncWrites   = 200
	fsyncLeast    = 20
	fsyncPatience = 20 * time.Second
)

// Fsync is how long writes took until they were on the disk.
type Fsync struct {
	Writes        int
	P50, P99, Max time.Duration
}

// MeasureFsync writes to a file below dir, as etcd writes its log, and removes it. It
// blocks for 200 writes, 20 s at most; a disk that does not manage a tenth of
// them is given that time as its own.
func MeasureFsync(ctx context.Context, dir string) (Fsync, error) {
	limited, cancel := context.WithTimeout(ctx, fsyncPatience)
	defer cancel()
	times, err := host.FsyncTimes(limited, host.Existing(dir), fsyncWrites)
	switch {
	case ctx.Err() != nil:
		return Fsync{}, context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded) && len(times) >= fsyncLeast:
		return fsyncOf(times), nil
	case errors.Is(err, context.DeadlineExceeded):
		return Fsync{Writes: len(times), P50: fsyncPatience, P99: fsyncPatience, Max: fsyncPatience}, nil
	}
	return fsyncOf(times), err
}

// fsyncOf is what times say: the smallest time that half of them, or 99 of a
// hundred, do not exceed.
func fsyncOf(times []time.Duration) Fsync {
	if len(times) == 0 {
		return Fsync{}
	}
	sorted := slices.Sorted(slices.Values(times))
	at := func(percent int) time.Duration { return sorted[(len(sorted)*percent+99)/100-1] }
	return Fsync{Writes: len(sorted), P50: at(50), P99: at(99), Max: sorted[len(sorted)-1]}
}

// DiskSpeed judges the disk for etcd with that election timeout, 0 for the
// default one; err is why nothing was measured.
func DiskSpeed(f Fsync, err error, election time.Duration) Check {
	c := Check{Name: "fsync", State: StateOK, Why: "etcd acknowledges a write when it is on the disk of most members, and a leader that waits for its disk may lose the lead"}
	if err != nil {
		return c.unmeasured(err, "cannot measure how fast the disk is")
	}
	c.Measured = fmt.Sprintf("p50 %s, p99 %s, max %s (%d writes of 2 KiB)", short(f.P50), short(f.P99), short(f.Max), f.Writes)
	bad := advise.FsyncBad(election)
	const do = "Give etcd a faster disk (an SSD of its own), or take other load off this one."
	switch {
	case f.P99 > bad:
		return c.found(StateFailed, fmt.Sprintf("the disk is too slow for etcd: p99 %s, %v endangers the leader", short(f.P99), bad), do)
	case f.P99 > advise.FsyncGood:
		return c.found(StateWarning, fmt.Sprintf("the disk is slow for etcd: p99 %s, %v is good", short(f.P99), advise.FsyncGood), do)
	}
	return c
}

// Clock judges how the machine's clock is kept; err is why it is not known.
func Clock(clock host.Clock, err error) Check {
	c := Check{Name: "clock", State: StateOK, Why: "certificates, tokens and leases depend on clocks that agree"}
	switch {
	case err != nil:
		return c.unmeasured(err, "cannot ask how the clock is kept")
	case !clock.Synchronised:
		c.Measured = "not synchronised"
		return c.found(StateWarning, "nobody tells the kernel that its clock is right",
			"run an NTP client: timedatectl set-ntp true; or chrony, with rtcsync in its configuration")
	}
	c.Measured = "synchronised, off by " + short(clock.MaxError) + " at most"
	return c
}

// VXLAN judges whether the kernel can make such links; err is what trying said.
func VXLAN(err error) Check {
	c := Check{Name: "vxlan", State: StateOK, Measured: "a link can be made", Why: "flannel carries packets between the pods of different machines in it (spec.network.backend)"}
	if errors.Is(err, fs.ErrPermission) {
		return c.unmeasured(err, "")
	}
	if err != nil {
		c.Measured = err.Error()
		return c.found(StateFailed, "this kernel has no VXLAN", "modprobe vxlan    (or a kernel with CONFIG_VXLAN, or spec.network.backend: host-gw)")
	}
	return c
}

// OverlayDisk judges whether the file system of dir carries overlays; err is
// what trying said.
func OverlayDisk(dir string, err error) Check {
	c := Check{Name: "overlay-disk", State: StateOK, Measured: "an overlay in " + dir + " can be written", Why: "machines of a lab and containers have their changes on that file system"}
	if errors.Is(err, fs.ErrPermission) {
		return c.unmeasured(err, "")
	}
	if err != nil {
		c.Measured = err.Error()
		return c.found(StateFailed, "the file system of "+dir+" carries no overlay", "mount one that does, such as ext4 or xfs, there (an overlay, NFS or FAT does not)")
	}
	return c
}

// unmeasured is a check that said err instead of a figure: skipped where that
// takes rights that we do not have, else failed.
func (c Check) unmeasured(err error, what string) Check {
	if errors.Is(err, fs.ErrPermission) {
		return c.skipped("needs root")
	}
	c.Measured = err.Error()
	return c.found(StateFailed, what, "")
}

// short is a duration with as many digits as a person reads.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
