package main

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// votes is the step of a join with whose end the new server is a voter.
const votes = "has caught up and votes"

// change takes the third server away and adds one, n times: alive, and dead
// ("replace": from the removal of the dead one on).
func (b bench) change(n int) error {
	if _, err := b.start(); err != nil {
		return err
	}
	figures := map[string][]float64{}
	last := fmt.Sprintf("cp%d", b.servers)
	for range n {
		if err := b.once(figures, "join", last); err != nil {
			return err
		}
		if _, err := b.kuorum("-c", b.name, "lab", "stop", "--power", last); err != nil {
			return err
		}
		if err := b.once(figures, "replace", last); err != nil {
			return err
		}
	}
	table(fmt.Sprintf("%d servers, %d runs, s", b.servers, n), figures)
	return nil
}

// once removes the last server and lets it join again, and waits until the
// cluster is healthy.
func (b bench) once(figures map[string][]float64, what, last string) error {
	begin := time.Now()
	if _, err := b.kuorum("-c", b.name, "lab", "remove", last); err != nil {
		return err
	}
	removed := time.Now()
	if what == "join" {
		begin = removed
	}
	talk, err := b.kuorum("-c", b.name, "lab", "add", last)
	if err != nil {
		return err
	}
	figures[what+": to the end of the command"] = append(figures[what+": to the end of the command"], time.Since(begin).Seconds())
	figures[what+": to a voter"] = append(figures[what+": to a voter"], removed.Sub(begin).Seconds()+untilVoter(talk))
	_, err = b.kuorum("-c", b.name, "status", "--wait", "--brief")
	return err
}

// untilVoter sums the steps up to the one that ends with the vote.
func untilVoter(talk string) float64 {
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^\S+ (.*) \(([0-9.]+)s\)$`).FindAllStringSubmatch(talk, -1) {
		seconds, _ := strconv.ParseFloat(m[2], 64) // the pattern is a number
		sum += seconds
		if strings.HasSuffix(m[1], votes) {
			break
		}
	}
	return sum
}

// status times `kuorum status` with everything up, and with two machines whose
// cables are unplugged: nobody answers for them.
func (b bench) status(n int) error {
	if _, err := b.start(); err != nil {
		return err
	}
	figures := map[string][]float64{}
	for range n {
		if err := b.timeStatus(figures, "everything up", 0, 3); err != nil {
			return err
		}
	}
	for _, name := range []string{"cp2", "cp3"} {
		if _, err := b.kuorum("-c", b.name, "lab", "console", name, "--", "ip", "link", "set", "eth0", "down"); err != nil {
			return err
		}
	}
	for range n {
		if err := b.timeStatus(figures, "two of three black-holed", 4); err != nil {
			return err
		}
	}
	table(fmt.Sprintf("kuorum status, %d runs, s", n), figures)
	return nil
}

func (b bench) timeStatus(figures map[string][]float64, name string, codes ...int) error {
	begin := time.Now()
	err := exec.Command("bin/kuorum", "-c", b.name, "status").Run()
	took := time.Since(begin).Seconds()
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		return err
	}
	if !slices.Contains(codes, code) {
		return fmt.Errorf("kuorum status ended with %d", code)
	}
	figures[name] = append(figures[name], took)
	return nil
}

func table(head string, figures map[string][]float64) {
	fmt.Printf("| %s | min | median | p99 | max |\n|---|---|---|---|---|\n", head)
	for _, name := range slices.Sorted(maps.Keys(figures)) {
		list := slices.Sorted(slices.Values(figures[name]))
		fmt.Printf("| %s | %.2f | %.2f | %.2f | %.2f |\n", name, list[0], list[len(list)/2], list[(len(list)-1)*99/100], list[len(list)-1])
	}
}
