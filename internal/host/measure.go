package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fsyncBytes is about the size of an entry in the log of a Kubernetes
// cluster's etcd.
const fsyncBytes = 2 << 10

// FsyncTimes writes n times 2 KiB to the end of a temporary file in dir, each
// write followed by fdatasync, and returns how long each fdatasync took with
// its write: what etcd does for each entry of its log. It blocks until then or until ctx ends,
// between two writes; the file is removed in any case. The times measured
// until an error are returned with it.
func FsyncTimes(ctx context.Context, dir string, n int) (times []time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".kuorum-fsync-*")
	if err != nil {
		return nil, fmt.Errorf("cannot measure the disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	// Zeros might be left out by a disk that compresses.
	data := make([]byte, fsyncBytes)
	for i := range data {
		data[i] = byte(i*i + i>>3)
	}
	for range n {
		if ctx.Err() != nil {
			return times, context.Cause(ctx)
		}
		start := time.Now()
		if _, err := f.Write(data); err != nil {
			return times, fmt.Errorf("cannot measure the disk: %w", err)
		}
		if err := retry(func() error { return unix.Fdatasync(int(f.Fd())) }); err != nil {
			return times, fmt.Errorf("cannot measure the disk: fdatasync of %s: %w", f.Name(), err)
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}

// Clock is what the kernel knows about its own clock (adjtimex(2)).
type Clock struct {
	Synchronised bool          // somebody keeps it by a reference, and says so
	MaxError     time.Duration // by how much it may be off; without meaning when not Synchronised
}

// ReadClock asks the kernel how its clock is kept. It changes nothing and needs
// no rights.
func ReadClock() (Clock, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return Clock{}, fmt.Errorf("cannot ask the kernel about its clock: %w", err)
	}
	return Clock{
		Synchronised: state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0,
		MaxError:     time.Duration(t.Maxerror) * time.Microsecond,
	}, nil
}

// KernelRelease is what uname -r prints.
func KernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("cannot ask for the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// TryOverlay mounts an overlay whose upper directory is below dir and writes a
// file through it, in a mount namespace that ends with the call: no mount is
// seen by others, and nothing of it stays. It needs root's rights.
func TryOverlay(dir string) (err error) {
	top, err := os.MkdirTemp(dir, ".kuorum-overlay-*")
	if err != nil {
		return fmt.Errorf("cannot try an overlay: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(top)) }()
	return elsewhere(unix.CLONE_NEWNS, func() error {
		if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		path := func(name string) string { return filepath.Join(top, name) }
		for _, name := range []string{"lower", "upper", "work", "root"} {
			if err := os.Mkdir(path(name), 0o700); err != nil {
				return err
			}
		}
		if err := mount("overlay", path("root"), "overlay", 0, "lowerdir="+path("lower")+",upperdir="+path("upper")+",workdir="+path("work")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(path("root"), "file"), nil, 0o600)
	})
}

// Exchange is how long ago bytes of the application went out on a TCP
// connection, and came in; a side that never spoke counts from the connection's
// start.
type Exchange struct {
	Sent, Received time.Duration
	// Unacknowledged tells that the other machine has not confirmed all that was
	// sent: it is away, or a packet was lost and is not sent again yet.
	Unacknowledged bool
}

// LastExchange asks the kernel (tcp(7), TCP_INFO). It costs a system call and
// does not block; it fails on a connection that is closed.
func LastExchange(conn syscall.Conn) (Exchange, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Exchange{}, err
	}
	var info *unix.TCPInfo
	var inner error
	err = raw.Control(func(fd uintptr) {
		info, inner = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err := errors.Join(err, inner); err != nil {
		return Exchange{}, fmt.Errorf("cannot ask the kernel about a connection: %w", err)
	}
	return Exchange{
		Sent:     time.Duration(info.Last_data_sent) * time.Millisecond,
		Received: time.Duration(info.Last_data_recv) * time.Millisecond,

		Unacknowledged: info.Unacked > 0,
	}, nil
}

// Receive waits until a connection has bytes to read, or has ended, and reads as many
// as there are at once. take gets it a buffer when there may be some, and give has it
// back when there are none: who waits holds none. At the end of the connection data is
// empty, and the buffer is the caller's to give back in any case but an error.
func Receive(conn syscall.RawConn, take func() []byte, give func([]byte)) (data []byte, err error) {
	var n int
	waited := conn.Read(func(fd uintptr) (done bool) {
		data = take()
		if n, err = receive(fd, data, 0); err == nil {
			return true
		}
		give(data)
		data = nil
		return !errors.Is(err, unix.EAGAIN)
	})
	if err := cmp.Or(waited, os.NewSyscallError("recv", err)); err != nil {
		return nil, err
	}
	return data[:n], nil
}

// Await waits as Receive does and leaves everything unread; ended tells that nothing
// will come any more.
func Await(conn syscall.RawConn) (ended bool, err error) {
	var n int
	waited := conn.Read(func(fd uintptr) (done bool) {
		n, err = receive(fd, make([]byte, 1), unix.MSG_PEEK)
		return !errors.Is(err, unix.EAGAIN)
	})
	return n == 0, cmp.Or(waited, os.NewSyscallError("recv", err))
}

func receive(fd uintptr, into []byte, flags int) (n int, err error) {
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		n, _, err = unix.Recvfrom(int(fd), into, flags) //nolint:gosec // a descriptor
	}
	return n, err
}
