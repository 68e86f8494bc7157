package main

import "context"

func (s *stage) nodeStory(ctx context.Context) error   { return nil }
func (s *stage) launchStory(ctx context.Context) error { return nil }
func (s *stage) haltStory(ctx context.Context) error   { return nil }
func (s *stage) auditStory(ctx context.Context) error  { return nil }
