// What is watched, and who is told: people by mail, and the platform itself through its door for alerts (docs/alerts.md),
// where a pipeline may have a rule for any of these names.
@description('Region.')
param location string

@description('Makes names unique.')
param token string

@description('Tags of every resource.')
param tags object

@description('Addresses that are told.')
param emails array

@description('Host name of the app.')
param appHost string

@description('Client id of the Entra application that guards the app; empty: the app is not told.')
param apiClientId string

@description('Object id of that application.')
param apiObjectId string

@description('Resource id of Application Insights.')
param insightsId string

@description('Resource id of the Service Bus namespace.')
param serviceBusId string

@description('Resource ids of the Event Grid topics that deliver to it.')
param eventTopicIds array

@description('Resource id of the online endpoint.')
param endpointId string

@description('A 95th percentile of the answers above this, in milliseconds, is told.')
@minValue(1)
param latencyMilliseconds int

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: 'ag-${token}'
  location: 'global'
  tags: tags
  properties: {
    enabled: true
    groupShortName: 'dropforge'
    emailReceivers: [
      for (email, i) in emails: {
        name: 'person-${i}'
        emailAddress: email
        useCommonAlertSchema: true
      }
    ]
    webhookReceivers: empty(apiClientId)
      ? []
      : [
          {
            name: 'dropforge'
            serviceUri: 'https://${appHost}/api/v1/alerts'
            useCommonAlertSchema: true
            useAadAuth: true
            objectId: apiObjectId
            identifierUri: 'api://${apiClientId}'
            tenantId: tenant().tenantId
          }
        ]
  }
}

resource deadLetters 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'dropforge-dead-letters'
  location: 'global'
  tags: tags
  properties: {
    description: 'A queue has messages that were refused too often. docs/operate.md says how to read and send them again.'
    severity: 2
    enabled: true
    scopes: [serviceBusId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT15M'
    autoMitigate: true
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'dead'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'DeadletteredMessages'
          dimensions: [{ name: 'EntityName', operator: 'Include', values: ['*'] }]
          operator: 'GreaterThan'
          threshold: 0
          timeAggregation: 'Average'
        }
      ]
    }
    actions: [{ actionGroupId: people.id }]
  }
}

resource undelivered 'Microsoft.Insights/metricAlerts@2018-03-01' = [
  for (topic, i) in eventTopicIds: {
    name: 'dropforge-undelivered-events-${i}'
    location: 'global'
    tags: tags
    properties: {
      description: 'Event Grid gave up on events and kept them as blobs. Reconcile finds lost drops by itself, the poll lost runs.'
      severity: 2
      enabled: true
      scopes: [topic]
      evaluationFrequency: 'PT5M'
      windowSize: 'PT15M'
      autoMitigate: true
      criteria: {
        'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
        allOf: [
          {
            criterionType: 'StaticThresholdCriterion'
            name: 'kept'
            metricNamespace: 'Microsoft.EventGrid/systemTopics'
            metricName: 'DeadLetteredCount'
            operator: 'GreaterThan'
            threshold: 0
            timeAggregation: 'Total'
          }
        ]
      }
      actions: [{ actionGroupId: people.id }]
    }
  }
]

// A flow ended with an error of its own. `dropforge status` shows what it was about; the sweep starts what should live.
// The field names are those of the extension's tracking events:
// https://learn.microsoft.com/azure/azure-functions/durable/durable-functions-diagnostics#tracking-data
resource failedFlows 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = {
  name: 'dropforge-failed-flows'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    severity: 2
    enabled: true
    scopes: [insightsId]
    evaluationFrequency: 'PT15M'
    windowSize: 'PT15M'
    autoMitigate: true
    criteria: {
      allOf: [
        {
          query: 'traces | extend kind = tostring(customDimensions["prop__functionType"]), state = tostring(customDimensions["prop__state"]), flow = tostring(customDimensions["prop__functionName"]) | where kind == "Orchestrator" and state == "Failed" | project timestamp, flow'
          timeAggregation: 'Count'
          dimensions: [{ name: 'flow', operator: 'Include', values: ['*'] }]
          operator: 'GreaterThan'
          threshold: 0
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    actions: { actionGroups: [people.id] }
  }
}

// A new model was rolled back: no replica reported it ready in time, or a replica could not load it.
// `dropforge.swaps` counts deployments by outcome; one is rolled back when no replica took it.
resource noReplica 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = {
  name: 'dropforge-no-replica'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    severity: 1
    enabled: true
    scopes: [insightsId]
    evaluationFrequency: 'PT15M'
    windowSize: 'PT15M'
    autoMitigate: true
    criteria: {
      allOf: [
        {
          query: 'customMetrics | where name == "dropforge.swaps" | extend outcome = tostring(customDimensions["outcome"]), endpoint = tostring(customDimensions["endpoint"]) | where outcome == "rolled_back" and valueSum > 0 | project timestamp, endpoint'
          timeAggregation: 'Count'
          dimensions: [{ name: 'endpoint', operator: 'Include', values: ['*'] }]
          operator: 'GreaterThan'
          threshold: 0
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    actions: { actionGroups: [people.id] }
  }
}

resource answersFail 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'dropforge-endpoint-errors'
  location: 'global'
  tags: tags
  properties: {
    description: 'The endpoint answers with 5xx.'
    severity: 1
    enabled: true
    scopes: [endpointId]
    evaluationFrequency: 'PT1M'
    windowSize: 'PT5M'
    autoMitigate: true
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'errors'
          metricNamespace: 'Microsoft.MachineLearningServices/workspaces/onlineEndpoints'
          metricName: 'RequestsPerMinute'
          dimensions: [{ name: 'statusCodeClass', operator: 'Include', values: ['5xx'] }]
          operator: 'GreaterThan'
          threshold: 0
          timeAggregation: 'Average'
        }
      ]
    }
    actions: [{ actionGroupId: people.id }]
  }
}

resource answersSlow 'Microsoft.Insights/metricAlerts@2018-03-01' = {
  name: 'dropforge-endpoint-latency'
  location: 'global'
  tags: tags
  properties: {
    description: 'The 95th percentile of the answers of the endpoint is above what was set.'
    severity: 2
    enabled: true
    scopes: [endpointId]
    evaluationFrequency: 'PT1M'
    windowSize: 'PT5M'
    autoMitigate: true
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'slow'
          metricNamespace: 'Microsoft.MachineLearningServices/workspaces/onlineEndpoints'
          metricName: 'RequestLatency_P95'
          operator: 'GreaterThan'
          threshold: latencyMilliseconds
          timeAggregation: 'Average'
        }
      ]
    }
    actions: [{ actionGroupId: people.id }]
  }
}

output actionGroupId string = people.id
