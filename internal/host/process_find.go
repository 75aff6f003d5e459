package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// stat is the part of /proc/PID/stat that tells processes apart (proc_pid_stat(5)).
type stat struct {
	state   byte
	parent  int
	session int
	start   uint64 // clock ticks since boot
}

// dead tells that nothing of the process runs any more: a zombie waits for
// its parent, or the kernel is about to remove it.
func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, ErrGone
	}
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(data))
}

// parseStat reads the fields after the program's name, which stands in
// parentheses and may itself hold blanks and parentheses.
func parseStat(line string) (stat, error) {
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	const state, parent, session, start = 0, 1, 3, 19 // the manual counts from 1 and two fields earlier
	if len(fields) <= start {
		return stat{}, fmt.Errorf("cannot read process status %q: too few fields", line)
	}
	ppid, err := strconv.Atoi(fields[parent])
	if err != nil {
		return stat{}, fmt.Errorf("cannot read process status: parent: %w", err)
	}
	sid, err := strconv.Atoi(fields[session])
	if err != nil {
		return stat{}, fmt.Errorf("cannot read process status: session: %w", err)
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("cannot read process status: start time: %w", err)
	}
	return stat{state: fields[state][0], parent: ppid, session: sid, start: ticks}, nil
}

// FindLeader looks for the session leader that was started with variable
// (KEY=VALUE) in its environment, and returns its PID and start time, or
// ErrGone. Descendants inherit the variable but not the session's lead; should
// one lead a session of its own, the oldest is meant. It reads all of /proc.
func FindLeader(variable string) (pid int, startTime uint64, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, fmt.Errorf("cannot list processes: %w", err)
	}
	for _, entry := range entries {
		n, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		st, err := readStat(n)
		if err != nil || st.session != n || st.dead() || !hasVariable(n, variable) {
			continue
		}
		if pid == 0 || st.start < startTime {
			pid, startTime = n, st.start
		}
	}
	if pid == 0 {
		return 0, 0, fmt.Errorf("cannot find the process with %s: %w", variable, ErrGone)
	}
	return pid, startTime, nil
}

// hasVariable is false for processes of users whose environment we may not read.
func hasVariable(pid int, variable string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(bytes.Split(data, []byte{0}), func(v []byte) bool {
		return string(v) == variable
	})
}

// FindChild looks for the child of process parent whose first argument is
// word, and returns its PID and start time, or ErrGone. It reads all of /proc.
func FindChild(parent int, word string) (pid int, startTime uint64, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, fmt.Errorf("cannot list processes: %w", err)
	}
	for _, entry := range entries {
		n, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		st, err := readStat(n)
		if err != nil || st.parent != parent || st.dead() {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n))
		if argv := bytes.Split(line, []byte{0}); err == nil && len(argv) > 1 && string(argv[1]) == word {
			return n, st.start, nil
		}
	}
	return 0, 0, fmt.Errorf("cannot find %q among the children of process %d: %w", word, parent, ErrGone)
}

// BootID names the running boot of the kernel (random(4)). Start times of
// processes can be compared only within one.
func BootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// Self names this process so that no other is taken for it, also after a
// reboot: BOOT-ID.PID.START-TIME.
func Self() (string, error) {
	boot, err := BootID()
	if err != nil {
		return "", err
	}
	st, err := readStat(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("cannot tell this process from others: %w", err)
	}
	return fmt.Sprintf("%s.%d.%d", boot, os.Getpid(), st.start), nil
}

// Lives tells whether the process that Self named still runs. sure is false
// when it belongs to another boot or to another machine, and for what is no
// such name.
func Lives(name string) (lives, sure bool) {
	boot, err := BootID()
	parts := strings.Split(name, ".")
	if err != nil || len(parts) != 3 || parts[0] != boot {
		return false, false
	}
	pid, errPID := strconv.Atoi(parts[1])
	start, errStart := strconv.ParseUint(parts[2], 10, 64)
	if errPID != nil || errStart != nil {
		return false, false
	}
	st, err := readStat(pid)
	if errors.Is(err, ErrGone) {
		return false, true
	}
	return err == nil && st.start == start && !st.dead(), err == nil
}
