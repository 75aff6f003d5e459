package supervise

import (
	"sync/atomic"
	"syscall"

	"kuorum/internal/host"
)

// child is one running process, of our own or adopted.
type child struct {
	handle
	pid       int
	startTime uint64      // clock ticks since boot
	asked     atomic.Bool // to end, by Restart: its end is no failure
}

// handle is what host.Process does for the process it holds.
type handle interface {
	Signal(sig syscall.Signal) error
	Exited() <-chan struct{}
	ExitText() string
}

// system starts and finds processes. It is the seam for tests of timing,
// which run against processes that exist only in memory.
type system interface {
	start(c host.Command) (*child, error)
	// adopt fails with host.ErrGone when that process has ended.
	adopt(pid int, startTime uint64) (*child, error)
	// find returns PID and start time of the process that was started with
	// variable in its environment, or host.ErrGone.
	find(variable string) (pid int, startTime uint64, err error)
}

// linux is the real system.
type linux struct{}

func (linux) start(c host.Command) (*child, error) {
	p, err := host.StartProcess(c)
	if err != nil {
		return nil, err
	}
	return &child{handle: p, pid: p.PID, startTime: p.StartTime}, nil
}

func (linux) adopt(pid int, startTime uint64) (*child, error) {
	p, err := host.Adopt(pid, startTime)
	if err != nil {
		return nil, err
	}
	return &child{handle: p, pid: p.PID, startTime: p.StartTime}, nil
}

func (linux) find(variable string) (int, uint64, error) { return host.FindLeader(variable) }

// ended tells whether the process is over, without waiting.
func (c *child) ended() bool {
	select {
	case <-c.Exited():
		return true
	default:
		return false
	}
}
